"""The page in the browser: every tab computes by a plain function, and says which lines and which command do the same."""
