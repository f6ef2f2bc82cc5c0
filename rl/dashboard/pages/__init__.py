"""The pages of the dashboard, one per file, and the frame that they share."""
