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
