"""Many runs: sweeps, comparisons and their statistics. Stands on stoplab_trainers."""
