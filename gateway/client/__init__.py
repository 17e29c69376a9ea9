"""The other end of the doors: who sends scans, and who reviews what was held."""
