"""What is made of a task before anything is learned: labels, and measurements of the backbone."""
