-- safe: ROW EXCLUSIVE on checkpoint_migrations
--
-- The versions LangGraph's own setup() looks for, so that it finds nothing left to do: the JS
-- saver knows 0 to 4, the Python saver 0 to 9. Python's 6 to 8 are indexes on thread_id alone;
-- they are recorded but not created, because each primary key begins with thread_id. Rows of
-- later versions stay as they are.
INSERT INTO checkpoint_migrations (v)
SELECT v FROM generate_series(0, 9) AS v
ON CONFLICT DO NOTHING;
