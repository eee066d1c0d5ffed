"""Looking at a prepared data set: what it promises, how it differs from the last one, and what it lets leak."""
