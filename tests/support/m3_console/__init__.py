"""Things to look at: a scripted world for the console's tests, and a lively router for its picture."""
