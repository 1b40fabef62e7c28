-- What is made when the copy is complete. The keys are deferred: DynamoDB's tables have no order between them, so that a line
-- may come before its book, and waits.

ALTER TABLE orders ADD FOREIGN KEY (user_id) REFERENCES users DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE order_items ADD FOREIGN KEY (order_id) REFERENCES orders DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE order_items ADD FOREIGN KEY (isbn) REFERENCES books DEFERRABLE INITIALLY DEFERRED;
CREATE INDEX ON orders (user_id);
CREATE INDEX ON order_items (isbn);
CREATE INDEX ON books USING gin (search);
