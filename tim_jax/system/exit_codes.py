"""What a process's end says to the script that started it; RESTART: the same command goes on."""

DONE, FAILED, USER_ERROR, RESTART = 0, 1, 2, 75
