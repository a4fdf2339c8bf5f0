"""Workers claim shards, run the core on them and commit the results. All they need to know is in the job's row."""
