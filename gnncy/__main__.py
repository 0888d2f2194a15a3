"""``python -m gnncy``: the command."""
import sys

from gnncy.cli import main

sys.exit(main())
