-- What may be imported into a pool, and what an image was held against when it
-- was imported.
ALTER TABLE pools ADD COLUMN image_formats TEXT; -- JSON, NULL is any
ALTER TABLE images ADD COLUMN proof TEXT;        -- JSON
