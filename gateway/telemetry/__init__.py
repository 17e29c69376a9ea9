"""What is told of the work, to logs, metrics and traces; made so that no patient data can reach them."""
