-- Where an image's bytes can be had again, and which bases age does not remove.
ALTER TABLE images ADD COLUMN source TEXT; -- JSON, NULL is not known
ALTER TABLE volumes ADD COLUMN pinned INT64 NOT NULL DEFAULT 0 CHECK (pinned = 0 OR pinned = 1);
