"""Problems for `ngopt race`, to copy."""
