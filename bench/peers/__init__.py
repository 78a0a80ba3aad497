"""Other one-click models beside TraceNet: the same clicks on the same masks, and times side by side in one run."""
