-- Which of several descriptions of one image or instance is the newest: clocks
-- can be set back.
ALTER TABLE images ADD COLUMN generation INT64 NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN generation INT64 NOT NULL DEFAULT 0;
