"""The learned second stage of item lists: candidates of several sources, their features, the order that is served."""
