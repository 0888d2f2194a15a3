import pytest


@pytest.fixture(scope="session", autouse=True)
def _what_is_remembered_stays_in_the_tests(tmp_path_factory):
    """Calibrations of disks are kept in the user's cache folder: tests neither read nor fill it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("GNNCY_DISK", raising=False)
        yield


@pytest.fixture(autouse=True)
def _examples_write_to_a_folder_of_their_own(request):
    """Docstrings and guides show short file names; run each example where those may be written."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
