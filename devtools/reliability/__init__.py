"""Does a server with the pack survive what a long day brings? Many workflows, interruptions, and bad requests.

    python dev.py python -m devtools.reliability soak
    python dev.py python -m devtools.reliability interrupt
    python dev.py python -m devtools.reliability mutate

Each starts real ComfyUI servers in a sandbox folder of its own; docs/reliability.md says what is checked and what was measured.
"""
