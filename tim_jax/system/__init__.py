"""What every room stands on: files, locks, clusters, the compilation cache, exit codes, chips and timing."""
