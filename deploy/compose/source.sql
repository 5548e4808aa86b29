-- The forum of deploy/compose.yaml, and something that writes to it.
CREATE TABLE public.sections (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE public.topics (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    section_id int NOT NULL REFERENCES public.sections ON DELETE CASCADE,
    title text NOT NULL
);
CREATE TABLE public.messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic_id int NOT NULL REFERENCES public.topics ON DELETE CASCADE,
    body text NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON public.topics (section_id);
CREATE INDEX ON public.messages (topic_id);

INSERT INTO public.sections (name) SELECT 'section ' || i FROM generate_series(1, 10) AS i;
INSERT INTO public.topics (section_id, title) SELECT 1 + i % 10, 'topic ' || i FROM generate_series(1, 1000) AS i;
INSERT INTO public.messages (topic_id, body)
SELECT 1 + i % 1000, repeat(md5(i::text), 1 + i % 8) FROM generate_series(1, 200000) AS i;

CREATE PROCEDURE public.write_something() LANGUAGE sql AS $$
    INSERT INTO public.messages (topic_id, body)
    SELECT 1 + (random() * 999)::int, repeat(md5(random()::text), 4) FROM generate_series(1, 1 + (random() * 20)::int);
    UPDATE public.messages SET body = body || '.' WHERE id IN (SELECT (random() * 200000)::bigint FROM generate_series(1, 5));
    DELETE FROM public.messages WHERE id = (random() * 200000)::bigint;
$$;
