"""Label folders: what labelling writes, and who may read the test split."""
