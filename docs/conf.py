"""Sphinx configuration."""
import gnncy

project = "gnncy"
author = "gnncy developers"
copyright = "gnncy developers"
version = release = gnncy.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "numpydoc",
              "matplotlib.sphinxext.plot_directive"]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
default_role = "literal"

# A room's page lists what its __all__ lists, wherever in the room each name is defined.
autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

plot_formats = ["svg"]
plot_html_show_formats = plot_html_show_source_link = False
plot_rcparams = {"figure.figsize": (7, 2.8), "figure.constrained_layout.use": True, "axes.grid": True,
                 "grid.alpha": 0.3, "legend.frameon": False}

html_theme = "pydata_sphinx_theme"
html_title = "gnncy"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "show_prev_next": False}
html_sidebars = {"install": [], "reproducibility": [], "file_format": [], "developing": []}
html_copy_source = False
