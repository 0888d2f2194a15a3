import pytest


@pytest.fixture(autouse=True)
def _examples_write_to_a_folder_of_their_own(request):
    """Docstrings and guides show short file names; run each example where those may be written."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
