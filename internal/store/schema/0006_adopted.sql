-- Volumes that tarn did not make. Such bases hold what others read from and are
-- no copies of images: several may hold one content.
ALTER TABLE volumes ADD COLUMN adopted INT64 NOT NULL DEFAULT 0 CHECK (adopted = 0 OR adopted = 1);
DROP INDEX volumes_base;
CREATE UNIQUE INDEX volumes_base ON volumes (pool_id, content, format) WHERE kind = 'base' AND content <> '' AND adopted = 0;
