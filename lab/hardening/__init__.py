"""Training-time defences: one method a file, one loop for all of them, and a card that says what each is worth."""
