"""`vit-export doctor`: what this machine can run, and how to fix each problem."""
