"""`python -m model`: see commands.py."""

import sys

from model.commands import main

sys.exit(main())
