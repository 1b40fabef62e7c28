-- What would slow the copy down, or stand in its way: run by the worker, once, when the copy is
-- complete. The foreign keys are deferred: a transaction of the old shop may delete a user before
-- it moves the user's carts away, and only its end has to be consistent.

CREATE UNIQUE INDEX users_email ON users (email);
CREATE INDEX users_search ON users USING gin (search);
CREATE INDEX cart_sessions_user ON cart_sessions (user_id);
CREATE INDEX cart_sessions_open ON cart_sessions (updated_at) WHERE status = 'open';
CREATE INDEX cart_items_v2_sku ON cart_items_v2 (sku);

ALTER TABLE cart_sessions
    ADD CONSTRAINT cart_sessions_user_fk FOREIGN KEY (user_id)
    REFERENCES users (user_id) DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE cart_items_v2
    ADD CONSTRAINT cart_items_v2_cart_fk FOREIGN KEY (cart_id)
    REFERENCES cart_sessions (cart_id) DEFERRABLE INITIALLY DEFERRED;
