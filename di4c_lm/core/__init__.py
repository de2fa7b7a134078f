"""What every room stands on: settings that check themselves, the command line, whole files, retries."""
