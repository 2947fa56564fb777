-- What the edge functions of this directory need, beside examples/items.sql. Run both as postgres,
-- after CREATE EXTENSION syncstate.

-- Supabase grants every new table to anon and authenticated. Users may read their own items, and
-- nobody but the backend may write them.
ALTER TABLE items ENABLE ROW LEVEL SECURITY;
REVOKE ALL ON items FROM anon, authenticated;
GRANT SELECT ON items TO authenticated;
GRANT ALL ON items TO service_role;
CREATE POLICY own_items ON items FOR SELECT TO authenticated
    USING (user_id = (SELECT syncstate.current_user_id()));

-- Refresh tokens, for the backend alone. With one of them, and the client's secret, anybody can
-- read the account's calendars: so can anybody who has a dump of this table.
CREATE TABLE google_grants (
    user_id       uuid NOT NULL,
    account       text NOT NULL,        -- as in syncstate.sync_state
    refresh_token text NOT NULL,
    PRIMARY KEY (user_id, account)
);
ALTER TABLE google_grants ENABLE ROW LEVEL SECURITY;
REVOKE ALL ON google_grants FROM anon, authenticated;
GRANT ALL ON google_grants TO service_role;
