"""`python -m nacd`."""

from nacd.cli import main

raise SystemExit(main())
