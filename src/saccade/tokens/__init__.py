"""Between pixels and sequences: box bins, contours and text vocabularies."""
