"""Planning and ablations: what to try, when to stop it, what the final score will be."""
