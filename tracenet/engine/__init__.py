"""From a captured graph to a schedule that an executor walks without Python."""
