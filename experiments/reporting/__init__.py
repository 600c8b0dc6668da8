"""What an evaluation found, shown: tables, figures, and the report."""
