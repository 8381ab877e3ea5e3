"""The command: see the package."""

from .command import main

raise SystemExit(main())
