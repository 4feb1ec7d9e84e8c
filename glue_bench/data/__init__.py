"""Where text and examples come from: GLUE (hub, folder, embedded), raw text, and the batches made of them."""
