"""What was decided and done, in a log that cannot be changed unnoticed."""
