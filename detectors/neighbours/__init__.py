"""The changed copies of an image on which the protected model is asked again: one file a kind."""
