"""What dev.py and the tests share: the environment, the host, a server to talk to. Not part of the pack."""
