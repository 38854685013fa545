"""Exit codes of all commands. After RESTART the same command goes on where it stopped."""

DONE, FAILED, USER_ERROR, RESTART = 0, 1, 2, 75
