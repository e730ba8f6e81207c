"""`doctor`: one page that says whether a run would work here, and how to fix what would not."""
