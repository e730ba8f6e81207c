"""What a process has around it: ranks, devices, clocks, files, the terminal.

Every room except `config` may import it.
"""
