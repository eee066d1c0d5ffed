"""What crosses a border: column names, table schemas, manifests, errors. No torch; everything else may import it."""
