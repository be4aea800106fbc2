"""What makes, fills in and checks the documentation; no part of the installed package."""
