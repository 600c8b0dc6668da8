"""What labelling will take, calculated before anything runs."""
