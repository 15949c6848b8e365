"""Operations and the fast primitives that they are made of."""
