-- What ../items.sql lacks on Supabase, which grants every new table in schema public to anon and
-- authenticated: users may read their own items, and nobody but the backend may write them. Run
-- it after that file, as the same role.
ALTER TABLE items ENABLE ROW LEVEL SECURITY;
REVOKE ALL ON items FROM anon, authenticated;
GRANT SELECT ON items TO authenticated;
GRANT ALL ON items TO service_role;
CREATE POLICY own_items ON items FOR SELECT TO authenticated
    USING (user_id = (SELECT syncstate.current_user_id()));
