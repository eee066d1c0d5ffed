"""Training that goes on from an earlier policy: its weights in the vocabularies of tonight's data set."""
