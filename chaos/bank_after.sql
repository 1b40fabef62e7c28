-- After the copy: what makes order matter at the target.
CREATE UNIQUE INDEX seats_label ON seats (label);
ALTER TABLE children
    ADD CONSTRAINT children_parent FOREIGN KEY (parent_id) REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED;
