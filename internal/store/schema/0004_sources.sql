-- The storage behind a pool, in the words of its technology.
ALTER TABLE pools ADD COLUMN source TEXT; -- JSON, NULL is none but the path
